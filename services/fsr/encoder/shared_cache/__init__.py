"""Features that one replica has cached, for the follow-up questions that come to the others."""
