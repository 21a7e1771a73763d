"""What is measured over time, and what follows from it: samples, objectives, alerts."""
