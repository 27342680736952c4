"""The formulas as loops over time: the definition every other backend is compared with. Never optimised."""
