"""From predictions to numbers: reading prediction files, scores, metrics, intervals, the no-image floor, tables."""
