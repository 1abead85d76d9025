-- Decrements crash counts. A count that was deleted or has expired is not recreated.
for field, by in pairs({ runs = 1, alone = tonumber(ARGV[1]) }) do
  if by > 0 and tonumber(redis.call('HGET', KEYS[1], field) or '0') >= by then
    redis.call('HINCRBY', KEYS[1], field, -by)
  end
end
return 1
