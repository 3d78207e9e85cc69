"""Results as asv stores them: written from records, and read back as a history."""
