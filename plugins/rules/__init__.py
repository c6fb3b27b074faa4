"""How to fold task vectors and how to read the merged one out: pure functions of tensors."""
