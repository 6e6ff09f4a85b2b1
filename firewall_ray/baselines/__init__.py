"""What a trained router is compared with: each baseline writes the same SCORES rows, one a file."""
