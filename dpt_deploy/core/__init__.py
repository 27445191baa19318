"""What every other part stands on: errors, files, the contract, metrics, the manifest and the verdict."""
