"""What a training run needs before it starts: parameters, memory by part, and the largest micro-batch that fits."""
