"""The composition root: everything a broker process consists of, built in order."""
