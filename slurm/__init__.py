"""Jobs on a Slurm cluster: what runs inside an allocation, and what submits, shows and cancels a whole pipeline."""
