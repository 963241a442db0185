"""What the scripts share: their options, and the model that these ask for."""
