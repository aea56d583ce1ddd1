"""The small sample corpus: hand-written pages and dialogues, and more generated from tables of facts."""
