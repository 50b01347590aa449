"""What the gate holds an engine against: golden logits, faults it knows by name, and the judgement."""
