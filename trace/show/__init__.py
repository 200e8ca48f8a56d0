"""What is looked at of a dump: a part of a stage, its figures, and a page of pictures."""
