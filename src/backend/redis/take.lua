-- Says what is to be done with a message of a task that may have been parked, or with a run that is
-- about to park for the first time: `take` and `begin` of lifecycle/park.rs.
-- KEYS[1] the park record
-- KEYS[2] the index of open questions
-- ARGV    kind of ticket or 'begin', its number or 0, holder, lease in ms, longest wait in ms, digest
--         of the task ('': the message does not carry it), 1 if a run that begins starts anew
-- Returns what to do, and a number; for a claim then the stored message and what became of the
-- questions of the task. For 'occupied' the message of the task that is suspended.
local OVERTAKEN, LEAP = 1000, 2 ^ 20
local kind, number, holder = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local lease, recheck = tonumber(ARGV[4]), tonumber(ARGV[5])
local digest, starts_anew = ARGV[6], ARGV[7] == '1'
local now = now_in_ms()

local function claim(waits, alarm)
  redis.call('HSET', KEYS[1], 'v', '1', 'number', ARGV[2], 'holder', holder,
    'until', whole(now + lease), 'waits', waits, 'alarm', alarm)
end

local function create(told)
  claim('', '0')
  if digest ~= '' then
    redis.call('HSET', KEYS[1], 'digest', digest)
  end
  return { 'claimed', told, '' }
end

local park = redis.call('HMGET', KEYS[1], 'number', 'waits', 'holder', 'until', 'ended', 'v', 'alarm',
  'digest')
if not park[1] then
  if kind == 'wake' then
    return { 'lost', '0' }
  elseif kind == 'resume' then
    return { 'ack', '0' }
  elseif number == 0 and kind ~= 'begin' then
    return { 'unclaimed', '0' }
  end
  return create(ARGV[2])
end
if park[6] ~= '1' then
  return { 'newer', '0' }
end
local stored, waits = tonumber(park[1]), park[2] or ''
local is_known = digest ~= '' and park[8]
local is_another = is_known and park[8] ~= digest
if kind == 'begin' and park[5] == '1' and (is_another or (is_known and starts_anew)) then
  redis.call('DEL', KEYS[1])
  return create(stored + 1 < LEAP and whole(stored + 1) or '0')
end
local is_first = number == 0 and (kind == 'original' or kind == 'begin')
if is_another then
  if not is_first then
    return { 'ack', '0' }
  elseif park[5] == '1' then
    return { 'unclaimed', '0' }
  end
  return { 'occupied', '0', redis.call('HGET', KEYS[1], 'message') or '' }
end
if park[5] == '1' and is_known and is_first and kind == 'original' then
  return { 'ended', '0' }
end
local is_ahead = number > stored
local is_forged = is_ahead and (kind == 'resume' or number - stored > LEAP)
if park[5] == '1' or number < stored or is_forged then
  return { 'ack', '0' }
end
local left = tonumber(park[4] or '0') - now
if (park[3] or '') ~= '' and park[3] ~= holder and left > 0 then
  return { 'postpone', whole(is_ahead and math.min(left, OVERTAKEN) or left) }
end
local alarm = park[7] or '0'
local due = due_in(waits, alarm, now)
if due > 0 and kind == 'resume' then
  return { 'ack', '0' }
end
if due > 0 and kind == 'wake' and not is_ahead then
  return { 'postpone', whole(math.min(due, recheck)) }
end
if is_ahead then
  claim('', '0')
else
  claim(waits, alarm)
end
local asked = redis.call('HGET', KEYS[1], 'asked') or ''
local answer = add_rulings({ 'claimed', ARGV[2], redis.call('HGET', KEYS[1], 'message') or '' }, asked, now)
for n = 4, #answer, 5 do
  redis.call('ZREM', KEYS[2], answer[n])
end
return answer
