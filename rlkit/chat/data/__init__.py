"""Chat data: files of many formats to conversations, preferences, feedback and prompts. Light: no torch."""
