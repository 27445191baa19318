"""Generated people with the body of Anny: what the demonstration model is trained on, and nothing else needs."""
