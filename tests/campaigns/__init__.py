"""Campaigns that test the program under stress: damaged input, kills at random moments, thousands of records."""
