"""Why entropy moves: closed forms and the small worlds where they are exact, the ledger of real updates, fitted laws, alarms."""
