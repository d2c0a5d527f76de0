"""How the embedded language models were made: texts, invented people, pre-training, export."""
