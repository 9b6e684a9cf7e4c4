"""What is done to find out: one module for each kind of check, which measures and asks ``verdicts`` what it means."""
