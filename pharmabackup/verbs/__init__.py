"""One verb a file. Each takes the unlocked repository, never `Repository`, so no circle can form."""
