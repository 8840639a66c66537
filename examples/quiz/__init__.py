"""A quiz for a hall: one host, any number of phones, late teams, and answers that are in time or not."""
