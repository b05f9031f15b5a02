"""What rollouts are rewarded by: each environment a small file behind the contract of `base`."""
