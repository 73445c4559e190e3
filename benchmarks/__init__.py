"""What a checkpoint costs: this project beside its peers, measured on the machine at hand."""
