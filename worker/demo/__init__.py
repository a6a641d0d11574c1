"""The whole system on one machine: embedded PostgreSQL, simulated MoySklad, a real supervisord."""
