"""The steps of a compression: prepare, choose, realize, account."""
