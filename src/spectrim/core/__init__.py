"""Records and interfaces that everything else is made of; nothing here runs a network."""
