"""From images to what the prior is conditioned on: a frozen encoder, and the fusion of the modalities' tokens."""
