"""What every GAN here shares: training, its pieces, and how images are made from the trained networks."""
