"""What only a GPU can show (``surgery-r1 gpu``): exactness in bfloat16, flex attention, whole steps, memory."""
