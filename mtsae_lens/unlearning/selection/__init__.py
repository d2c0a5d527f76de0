"""Which features to edit: what is known of them (evidence), ways of ranking them (scores), and how steady the choice is."""
