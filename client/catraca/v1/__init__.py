"""Generated from protos/catraca/v1 by `make proto`. Do not edit."""
