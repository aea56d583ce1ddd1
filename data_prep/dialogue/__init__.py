"""Chat data: dialogues, their examples and the template that turns them into ids."""
