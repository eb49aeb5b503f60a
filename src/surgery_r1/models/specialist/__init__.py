"""A discriminative rival: it classifies the answer and regresses the box, and writes no text."""
