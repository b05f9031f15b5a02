"""Long texts made for training: document question answering and retrieval (report section 2.5)."""
