"""Makes the bundled models from nothing: renders its own data, then trains mini-CLIP, the VAE and the UNet."""
