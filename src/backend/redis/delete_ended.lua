-- Deletes a suspension record if its task has ended.
if redis.call('HGET', KEYS[1], 'ended') == '1' then
  return redis.call('DEL', KEYS[1])
end
return 0
