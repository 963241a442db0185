"""TensorFlow to npz: a frozen graph or checkpoint, read, checked, converted."""
