"""What the verbs share: options, errors, files, texts, tables and progress."""
