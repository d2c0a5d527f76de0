"""What features do: facts about all of them from one pass over text, and about typed text in a notebook; knows no page."""
