"""What a request may say, and the documents made of it. Pure."""
