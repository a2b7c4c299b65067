"""Running a VM. Knows nothing of jobs, accounts or HTTP."""
