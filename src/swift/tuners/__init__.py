"""What is trained: adapters, frozen parts, merging."""
