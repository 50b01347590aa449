"""The backends that lower the one model definition; `registry` finds them, `contract` says what they are."""
