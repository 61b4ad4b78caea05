"""What a request may say, and how it is counted: rules that services, SDK and command share."""
