"""What a run left goes to the Hugging Face Hub, with a card that says what it is."""
