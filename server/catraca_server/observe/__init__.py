"""What is told to whom. Each part implements a protocol of the domain; the composition root hands it in."""
