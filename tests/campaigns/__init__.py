"""Campaigns against the program: damaged input, kills at random moments, reports of thousands of records."""
