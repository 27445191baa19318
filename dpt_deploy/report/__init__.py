"""What people look at: the HTML report, the model card, terminal tables, colours and panels."""
