"""What layers see, and how much a change of them matters."""
