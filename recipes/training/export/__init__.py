"""What a run becomes outside: a Hugging Face directory or adapters, their card, and the gate before them."""
